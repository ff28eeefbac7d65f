"""Follows growing and new files as an endless stream of rows.

A scan of the folder every `poll_interval` finds which files changed. A file is recognised by its
inode, through any renaming, and by its content (`connectors.files.fingerprint`), so a log that is
rotated by renaming, by copying and truncating, or by compressing, is read once.

- A file that left the folder is read to its end while it is open here.
- A file that was truncated or overwritten ends there; its new content is a new file. A copy of its
  old content takes its place, so unread rows are read from the copy.
- A new file with the content of a followed one is a copy, perhaps still being written (`cp` and
  `gzip` write in place): it waits until the original goes, or the contents differ.

- A file that is read as a whole and is damaged ends with a row that says why, which is rejected.

Two kinds of rows are lost: those a writer appends between the last copied byte and the truncation
(copytruncate loses them itself), and those of a file that appears and goes between two scans.
"""
