# SPDX-License-Identifier: Apache-2.0
"""`make compat`: the core tests on other versions of PyTorch and transformers, each in an environment of its own.

    environments   which versions, and which tests are asked of each
    build          a virtual environment with them, or why there is none
    defects        what is wrong with a version of PyTorch itself, shown without this package
    outcome        what the tests said, read off their reports
    page           docs/compat.json, and the table in docs/compat.md
    __main__       the command line
    newest         `make newest`: the newest releases within our ranges

Needs nothing but Python and an index of packages; the environments have their own pytest.
"""
