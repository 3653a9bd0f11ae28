"""Quantization-aware training: configs, prepare, calibration and schedules."""
