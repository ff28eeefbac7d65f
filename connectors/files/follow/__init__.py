"""Follows growing and new files as an endless stream of rows.

A look at the folder every so often (`poll_interval`) says which files changed. A file is followed
by the system's number of it, through any renaming, and by its content (`identity`): so a log that
is rotated by renaming, by copying and cutting, or by compressing, is read once.

- A file that is gone from the folder is read to its end as long as it is open here.
- A file that was cut, or written anew, ends there; what it holds now is a new file. A copy of what
  it was, made before, takes its place: so what was not read of it yet is read there.
- A new file that holds the same as one that is followed is a copy of it, perhaps one that is still
  being written (`cp` and `gzip` write in place): it waits until the other goes, or it differs.

What nobody can read is what a writer appends between the last byte copied and the cut: that is
copytruncate's own loss. Nor is a file read that came and went between two looks.
"""
