# SPDX-License-Identifier: Apache-2.0
"""A categorical latent small enough to sum over: what estimates of gradients are held against."""

import math

import torch

CATEGORIES, PARTICLES, DRAWS = 4, 2, 200_000
LOG_JOINT = torch.tensor([-2.1, -1.4, -3.0, -2.6], dtype=torch.float64)  # log p(x, z) of one x
LOGITS = torch.tensor([1.1, -0.3, 0.2, -0.8], dtype=torch.float64)  # of q(z | x)


def exact_gradient():
    """Of minus the bound of two particles by the logits of q, over all 16 pairs of latents."""
    logits = LOGITS.clone().requires_grad_()
    log_q = logits.log_softmax(0)
    log_weights = LOG_JOINT - log_q
    log_sum = torch.logaddexp(log_weights.unsqueeze(0), log_weights.unsqueeze(1))
    probability = (log_q.unsqueeze(0) + log_q.unsqueeze(1)).exp()
    bound = (probability * (log_sum - math.log(2))).sum()
    return -torch.autograd.grad(bound, logits)[0]


def draw(generator, draws=DRAWS, particles=PARTICLES):
    """Logits `(draws, C)`, a leaf for each draw; latents `(draws, 1, particles)`; their
    log-weights and log_q of the same shape.
    """
    logits = LOGITS.expand(draws, -1).clone().requires_grad_()
    z = torch.multinomial(LOGITS.softmax(0), draws * particles, True, generator=generator)
    z = z.view(draws, 1, particles)
    log_q = logits.log_softmax(-1).gather(-1, z.squeeze(1)).unsqueeze(1)
    return logits, z, LOG_JOINT[z] - log_q, log_q


def standardised_errors(gradients):
    """By how many standard errors the mean of `gradients` `(draws, C)` misses the exact one."""
    error = (gradients.mean(0) - exact_gradient()).abs()
    return error / (gradients.std(0) / math.sqrt(len(gradients)))
