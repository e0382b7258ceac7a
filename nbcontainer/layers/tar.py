"""The tar format as layers in the wild use it: from a stream of bytes to entries.

One reader for V7, ustar, PAX (extended and global headers), GNU (long names, base-256 numbers, sparse files in their
four dialects) and star. Names are bytes; nothing is believed that was not checked; what a header can make us remember
is bounded (`TarLimits`). Where dialects contradict each other we read as Go's ``archive/tar`` does, because that is
what the engines that built these layers wrote and verified them with: a tar that two readers understand differently
is an attack.

Sources: POSIX pax(1) "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format",
"Storing Sparse Files".
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.errors import InvalidImage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Archive", "Entry", "Stream", "TarLimits"]

_BLOCK = 512
_BUFFER = 1024 * 1024
_ZEROS = bytes(_BLOCK)
_ADLER = 65521

REGULAR = frozenset(b"\x0007")
HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"123456"
_SPARSE, _DUMP_DIRECTORY = b"SD"
_PAX, _SOLARIS_PAX, _PAX_GLOBAL = b"xXg"
_LONG_NAME, _LONG_LINK = b"LK"
FILE = 0x30
_EXTENSIONS = frozenset(b"xXgLK")
_BLANK = frozenset(b"\0 ")
_MOST_CACHED = 4096
_LONGEST_IN_HEADER = 256
_WITHOUT_MEANING = frozenset(b"VMN")
_HEADER_ONLY = frozenset(b"123456")
_XATTR = b"SCHILY.xattr."


@dataclass(frozen=True, slots=True, kw_only=True)
class TarLimits:
    """How much a header may make the reader remember."""

    header: int = 1024 * 1024
    """Bytes of one PAX header, long name or sparse map."""
    name: int = 4095
    """Bytes of a path or link target: PATH_MAX without its NUL."""
    global_keys: int = 1024


class Entry:
    """One member of the archive; `data` more bytes of the stream belong to it."""

    __slots__ = ("data", "gid", "kind", "link", "mode", "mtime", "name", "size", "sparse", "uid", "xattrs")

    def __init__(  # noqa: PLR0917 - made for every header, and positions are faster
        self, name: bytes, kind: int, mode: int, uid: int, gid: int, size: int, mtime: int, link: bytes
    ) -> None:
        self.name = name
        self.kind = kind
        """Type flag; every regular dialect is ``0``, a regular name with a trailing slash is a directory."""
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        """Bytes of the file once written."""
        self.data = size
        """Bytes in the archive; smaller than `size` when sparse."""
        self.mtime = mtime
        """Nanoseconds since the epoch."""
        self.link = link
        self.xattrs: dict[bytes, bytes] | None = None
        self.sparse: list[tuple[int, int]] | None = None
        """(offset, length) of each piece of data, in order."""

    def __repr__(self) -> str:
        return f"<Entry {chr(self.kind)} {self.name!r} {self.mode:o} {self.uid}:{self.gid} {self.size}>"


class Stream:
    """A pipe or file, read in large pieces into one buffer that is used again and again."""

    __slots__ = ("_buffer", "_end", "_fd", "_start", "_view", "total")

    def __init__(self, fd: int, size: int = _BUFFER) -> None:
        self._fd = fd
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self.total = 0

    def _fill(self, wanted: int) -> bool:
        """Have `wanted` bytes (at most the buffer) lie in one piece; false at the end of the stream."""
        start, end, size = self._start, self._end, len(self._buffer)
        if start == end:
            start = end = 0
        elif start + wanted > size:
            self._view[: end - start] = self._view[start:end]
            start, end = 0, end - start
        while end - start < wanted:
            count = os.readv(self._fd, [self._view[end:]])
            if not count:
                self._start, self._end = start, end
                return False
            end += count
            self.total += count
        self._start, self._end = start, end
        return True

    def block(self) -> bytes:
        """The next 512 bytes; none at the end of the stream."""
        start = self._start
        if self._end - start < _BLOCK:
            if not self._fill(_BLOCK):
                if self._start == self._end:
                    return b""
                raise truncated()
            start = self._start
        self._start = start + _BLOCK
        return bytes(self._view[start : start + _BLOCK])

    def exactly(self, count: int) -> bytes:
        """The next `count` bytes, which the caller has bounded."""
        pieces = bytearray()
        while len(pieces) < count:
            pieces += self.piece(count - len(pieces))
        return bytes(pieces)

    def piece(self, most: int) -> memoryview:
        """At least one and at most `most` bytes, valid until the next call; `InvalidImage` at the end."""
        if self._start == self._end and not self._fill(1):
            raise truncated()
        start = self._start
        self._start = stop = min(self._end, start + most)
        return self._view[start:stop]

    def whole(self, count: int) -> memoryview | None:
        """The next `count` bytes in one piece when they fit in the buffer, valid until the next call."""
        start = self._start
        if self._end - start < count:
            if count > _BUFFER:
                return None
            if not self._fill(count):
                raise truncated()
            start = self._start
        self._start = stop = start + count
        return self._view[start:stop]

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        start = self._start
        if self._end - start >= count:
            self._start = start + count
            return
        while count:
            count -= len(self.piece(count))

    def drain(self) -> None:
        """Read to the end, so that whoever writes can hash everything."""
        while self._fill(1):
            self._start = self._end


def truncated() -> InvalidImage:
    """The sentence for a stream that ended early."""
    return InvalidImage("the layer's tar ends in the middle of an entry; pull the image again, or have it pushed anew")


class Archive:
    """Iterate to get entries; read or skip exactly `entry.data` bytes of `stream` before asking for the next.

    Padding is handled here. The iteration ends at the first zero block or at the end of the stream.
    """

    def __init__(self, stream: Stream, limits: TarLimits | None = None) -> None:
        self._stream = stream
        self._limits = limits or TarLimits()
        self._numbers: dict[bytes, tuple[int, int, int]] = {}
        self._times: dict[bytes, int] = {}
        self._sums: dict[bytes, int] = {}
        self._global: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        stream, read_block = self._stream, self._stream.block
        pax: list[tuple[bytes, bytes]] = []
        long_name = long_link = b""
        while (block := read_block()) and block != _ZEROS:
            entry = self._header(block)
            kind = entry.kind
            if kind in _EXTENSIONS:
                body = self._extension(entry)
                if kind == _LONG_NAME:
                    long_name = _until_nul(body)
                elif kind == _LONG_LINK:
                    long_link = _until_nul(body)
                elif kind == _PAX_GLOBAL:
                    self._remember(_records(body))
                else:
                    pax = _records(body)
                continue
            plain = kind == FILE and not (pax or long_name or self._global or entry.name.endswith(b"/"))
            if pax or self._global:
                self._extend(entry, [*self._global.items(), *pax])
                pax = []
            if kind == _SPARSE:
                self._old_sparse(entry, block)
            if long_name or long_link:
                entry.name = long_name or entry.name
                entry.link = long_link or entry.link
                long_name = long_link = b""
            if not plain:
                self._settle(entry)
            padding = -entry.data % _BLOCK
            yield entry
            if padding:
                stream.skip(padding)

    def _header(self, block: bytes) -> Entry:
        """Read the fixed part. What is the same in thousands of headers is looked up by its bytes."""
        field = block[148:156]
        if zlib.adler32(block) & 0xFFFF != (self._sums.get(field) or self._sum(field)):
            _check_signed(block)
        cut = block.find(0, 0, 100)
        name = block[:cut] if cut >= 0 else block[:100]
        if block[345] and block[257:263] == b"ustar\0":
            end = 476 if block[508:512] == b"tar\0" else 500
            name = block[345:end].partition(b"\0")[0] + b"/" + name
        ids = block[100:124]
        mode, uid, gid = self._numbers.get(ids) or self._three_numbers(ids)
        digits = block[124:135]
        size = _octal(digits) if block[135] in _BLANK else None
        if size is None:
            size = _number(block[124:136])
        if size < 0:
            raise InvalidImage(f"layer entry {shown(name)} has a negative size; the tar is damaged or forged")
        time = block[136:148]
        mtime = self._times.get(time)
        if mtime is None:
            mtime = self._time(time)
        link = block[157:257].partition(b"\0")[0] if block[157] else b""
        return Entry(name, block[156], mode, uid, gid, size, mtime, link)

    def _sum(self, field: bytes) -> int:
        if len(self._sums) >= _MOST_CACHED:
            self._sums.clear()
        expected = self._sums[field] = _expected_sum(field)
        return expected

    def _time(self, field: bytes) -> int:
        if len(self._times) >= _MOST_CACHED:
            self._times.clear()
        mtime = self._times[field] = _number(field) * 1_000_000_000
        return mtime

    def _three_numbers(self, field: bytes) -> tuple[int, int, int]:
        """Mode, uid and gid, which a layer repeats thousands of times."""
        if len(self._numbers) >= _MOST_CACHED:
            self._numbers.clear()
        numbers = _number(field[:8]) & 0o7777, _number(field[8:16]), _number(field[16:24])
        self._numbers[field] = numbers
        return numbers

    def _extension(self, entry: Entry) -> bytes:
        if entry.size > self._limits.header:
            raise InvalidImage(
                f"the layer has an extended header of {entry.size} bytes, more than the {self._limits.header} allowed"
            )
        body = self._stream.exactly(entry.size)
        self._stream.skip(-entry.size % _BLOCK)
        return body

    def _remember(self, records: list[tuple[bytes, bytes]]) -> None:
        for key, value in records:
            if not key.startswith(b"GNU.sparse."):
                self._global[key] = value
        if len(self._global) > self._limits.global_keys:
            raise InvalidImage(f"the layer has more than {self._limits.global_keys} global header keys; refused")

    def _extend(self, entry: Entry, records: list[tuple[bytes, bytes]]) -> None:
        """Let PAX records override the header; an empty value takes an earlier record back."""
        fields: dict[bytes, bytes] = {}
        pieces: list[bytes] = []
        for key, value in records:
            if key.startswith(_XATTR):
                entry.xattrs = entry.xattrs or {}
                entry.xattrs[key[len(_XATTR) :]] = value
            elif key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
                pieces.append(value)
            elif value:
                fields[key] = value
            else:
                fields.pop(key, None)
        if not fields:
            return
        entry.name = fields.get(b"path", entry.name)
        entry.link = fields.get(b"linkpath", entry.link)
        if b"mtime" in fields:
            entry.mtime = _nanoseconds(fields[b"mtime"])
        if b"uid" in fields:
            entry.uid = _decimal(fields[b"uid"], "uid")
        if b"gid" in fields:
            entry.gid = _decimal(fields[b"gid"], "gid")
        if b"size" in fields:
            entry.size = entry.data = _decimal(fields[b"size"], "size")
        if b"GNU.sparse.major" in fields or b"GNU.sparse.map" in fields or b"GNU.sparse.size" in fields:
            self._pax_sparse(entry, fields, pieces)

    def _pax_sparse(self, entry: Entry, fields: dict[bytes, bytes], pieces: list[bytes]) -> None:
        """The three PAX dialects: 0.0 repeats two keys, 0.1 has a list in a key, 1.0 puts it before the data."""
        version = fields.get(b"GNU.sparse.major", b"0"), fields.get(b"GNU.sparse.minor", b"0")
        entry.name = fields.get(b"GNU.sparse.name", entry.name)
        real = fields.get(b"GNU.sparse.realsize") or fields.get(b"GNU.sparse.size")
        if version == (b"1", b"0"):
            numbers = self._sparse_map(entry)
        elif version[0] == b"0":
            listed = fields.get(b"GNU.sparse.map")
            numbers = [_decimal(text, "sparse map") for text in (listed.split(b",") if listed else pieces)]
        else:
            raise InvalidImage(f"layer entry {shown(entry.name)} has a sparse format this engine does not know")
        entry.size = _decimal(real, "sparse size") if real else entry.size
        _set_sparse(entry, numbers)

    def _sparse_map(self, entry: Entry) -> list[int]:
        """Dialect 1.0: a count and that many pairs, a decimal number a line, padded to blocks."""
        text = bytearray()
        lines, wanted = 0, 1
        while lines < wanted:
            if len(text) >= self._limits.header or entry.data < _BLOCK:
                raise InvalidImage(f"the sparse map of layer entry {shown(entry.name)} is too long or cut off")
            block = self._stream.exactly(_BLOCK)
            text += block
            entry.data -= _BLOCK
            lines += block.count(b"\n")
            if wanted == 1 and lines:
                wanted = 1 + 2 * _decimal(bytes(text.partition(b"\n")[0]), "sparse map")
        return [_decimal(line, "sparse map") for line in bytes(text).split(b"\n")[1:wanted]]

    def _old_sparse(self, entry: Entry, block: bytes) -> None:
        """GNU's own dialect: four pairs in the header, then blocks of 21 while a flag says so."""
        fields = [block[start : start + 12] for start in range(386, 482, 12)]
        more, read = block[482], 0
        while more:
            read += _BLOCK
            if read > self._limits.header:
                raise InvalidImage(f"the sparse map of layer entry {shown(entry.name)} is too long")
            extension = self._stream.exactly(_BLOCK)
            fields += [extension[start : start + 12] for start in range(0, 504, 12)]
            more = extension[504]
        used = [field for field in fields if field.strip(b"\0 ")]
        entry.size = _number(block[483:495])
        _set_sparse(entry, [_number(field) for field in used])

    def _settle(self, entry: Entry) -> None:
        """One meaning for each kind, and bounded names without NUL."""
        kind, name = entry.kind, entry.name
        if kind in REGULAR or kind == _SPARSE:
            entry.kind = DIRECTORY if name.endswith(b"/") else FILE
        elif kind in _HEADER_ONLY:
            entry.size = entry.data = 0
        elif kind == _DUMP_DIRECTORY:
            entry.kind = DIRECTORY
        elif kind not in _WITHOUT_MEANING:
            raise InvalidImage(f"layer entry {shown(name)} has the unknown tar type {chr(kind)!r}")
        if len(name) > _LONGEST_IN_HEADER or entry.link:
            self._check_lengths(entry)
        if 0 in name:
            raise InvalidImage(f"layer entry {shown(name)} has a NUL byte in its name; the tar is forged")

    def _check_lengths(self, entry: Entry) -> None:
        if 0 in entry.link:
            raise InvalidImage(f"layer entry {shown(entry.name)} has a NUL byte in its link; the tar is forged")
        if len(entry.name) > self._limits.name or len(entry.link) > self._limits.name:
            raise InvalidImage(
                f"layer entry {shown(entry.name)} has a name or link longer than {self._limits.name} bytes"
            )


def shown(name: bytes) -> str:
    """A name for a message: quoted, never longer than a line, control bytes escaped."""
    text = repr(name.decode("utf-8", "backslashreplace"))
    return text if len(text) <= 120 else f"{text[:116]}…'"


def _expected_sum(field: bytes) -> int:
    """What the low half of `zlib.adler32` of a whole header is when its checksum field is these bytes, and right.

    Adler's low half starts with 1 and is the sum of bytes modulo 65521: many times faster than `sum`. The stated sum
    counts the field itself as eight blanks.
    """
    stated = _octal(field)
    return -1 if stated is None else (1 + stated - 8 * 0x20 + sum(field)) % _ADLER


def _check_signed(block: bytes) -> None:
    """The second chance: some old writers summed signed bytes."""
    body = block[:148] + block[156:]
    total = sum(body) + 8 * 0x20 - 256 * sum(byte > 127 for byte in body)
    if _octal(block[148:156]) != total:
        raise InvalidImage("the layer is not a tar archive, or it is damaged (a header's checksum is wrong)")


def _number(field: bytes) -> int:
    """A numeric field: octal text, or base 256 when the top bit is set (negative when the next one is too)."""
    if field[0] & 0x80:
        number = int.from_bytes(field, "big")
        bits = 8 * len(field)
        return number - (1 << bits) if field[0] & 0x40 else number - (1 << (bits - 1))
    value = _octal(field)
    if value is None:
        raise InvalidImage("the layer's tar has a number that is none; it is damaged")
    return value


def _octal(field: bytes) -> int | None:
    """Octal digits, perhaps with blanks or NUL around; Python's int() takes signs and underscores, a tar must not."""
    if not field.isdigit():
        field = field.partition(b"\0")[0].strip()
        if not field:
            return 0
        if not field.isdigit():
            return None
    try:
        return int(field, 8)
    except ValueError:
        return None


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 20:
        raise InvalidImage(f"the layer's tar has the {what} {shown(text)}, which is not a number; it is damaged")
    return int(text)


def _nanoseconds(text: bytes) -> int:
    """A PAX time: seconds with an optional fraction, perhaps negative."""
    digits = text.removeprefix(b"-")
    whole, _, fraction = digits.partition(b".")
    value = _decimal(whole or b"0", "time") * 1_000_000_000 + _decimal((fraction + b"000000000")[:9], "time")
    return value if digits == text else -value


def _records(body: bytes) -> list[tuple[bytes, bytes]]:
    r"""The records of a PAX header, each ``LENGTH KEY=VALUE\n`` with LENGTH counting all of it."""
    records = []
    position, end = 0, len(body)
    while position < end and body[position]:
        space = body.find(b" ", position, position + 20)
        digits = body[position:space] if space > 0 else b""
        stop = position + int(digits) if digits.isdigit() else 0
        key, equals, value = body[space + 1 : stop - 1].partition(b"=")
        if not space < stop <= end or body[stop - 1] != 0x0A or not equals or not key:
            raise InvalidImage("the layer has a PAX header that cannot be read; the tar is damaged or forged")
        records.append((key, value))
        position = stop
    return records


def _until_nul(body: bytes) -> bytes:
    return body.partition(b"\0")[0]


def _set_sparse(entry: Entry, numbers: list[int]) -> None:
    """Check a sparse map: pairs in order, apart, inside the file, and exactly as long as the data."""
    pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
    reached = 0
    for offset, length in pairs:
        if offset < reached or length < 0:
            break
        reached = offset + length
    else:
        if len(numbers) % 2 == 0 and reached <= entry.size and sum(length for _, length in pairs) == entry.data:
            entry.sparse = pairs
            return
    raise InvalidImage(f"layer entry {shown(entry.name)} has a sparse map that contradicts itself; the tar is forged")
