"""`python -m transformer_xl` is the `transformer-xl` command."""

from transformer_xl_command import main

if __name__ == "__main__":
    main()
