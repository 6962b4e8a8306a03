"""The commands, one file a group. Whatever is heavy is imported inside them: `--help` stays quick."""
