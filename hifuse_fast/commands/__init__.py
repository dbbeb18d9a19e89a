"""The commands of `hifuse-fast`, a file each; `options` are what several of them take."""
