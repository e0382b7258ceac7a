"""Layers: from a compressed tar to a snapshot that can be mounted.

`compression` inflates and names the bytes, `tar` reads them, `apply` writes them through a `tree` that cannot be
left, `snapshotter` and its two implementations keep the results under their chain ids. The modules that run in the
user namespace (`tar`, `tree`, `apply`, `copying`, `remove`) need the standard library only: that process has no
site-packages.
"""
