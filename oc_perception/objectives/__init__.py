# SPDX-License-Identifier: Apache-2.0
"""Objectives of latent-variable models: log-weights in, losses of both networks out."""
