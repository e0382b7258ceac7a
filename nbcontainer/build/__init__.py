"""The workshop that makes images of Dockerfiles.

`plan` says which stages are needed, `stage` holds what one of them has become so far, `keys` names each step by what
goes into it, `cache` remembers what came of it, `sources` and `landing` copy files, `executor` runs all that, and
`outputs` hands the result over.
"""
