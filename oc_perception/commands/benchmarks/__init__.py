# SPDX-License-Identifier: Apache-2.0
"""One module per benchmark: `add_arguments(parser)` and `run(arguments) -> exit status`."""
