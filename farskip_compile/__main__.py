# SPDX-License-Identifier: Apache-2.0
"""`python -m farskip_compile`: the command `farskip`, where the folder of scripts is not on the path."""

from farskip_compile.cli import app

if __name__ == "__main__":
    app(prog_name="farskip")
