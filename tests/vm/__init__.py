"""The tests that need a kernel, on a machine that most people have and this one may not be: ``python -m tests.vm``.

Debian's own kernel with systemd as PID 1, cgroup v2 and nothing else, and AppArmor, in qemu without acceleration: so it
runs anywhere, and slowly, and is no part of the usual test session. `image` makes the disk, `machine` starts it,
`guest` is what runs inside.
"""
