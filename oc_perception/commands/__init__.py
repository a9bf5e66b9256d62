# SPDX-License-Identifier: Apache-2.0
"""One module per `oc-perception` subcommand, each with add_arguments(parser) and
run(arguments).
"""
