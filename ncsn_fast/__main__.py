"""python -m ncsn_fast is the command ncsn-fast."""

from ncsn_fast.cli import main

if __name__ == "__main__":
    main(prog_name="ncsn-fast")
