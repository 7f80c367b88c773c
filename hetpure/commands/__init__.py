"""The commands of `hetpure` that are no LightningCLI programs: a file each."""
