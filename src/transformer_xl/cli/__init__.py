"""The `transformer-xl` command: one file a command, each importing what is heavy inside its function."""
