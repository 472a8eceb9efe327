"""Scores, baselines, figures and reports of trained models."""
