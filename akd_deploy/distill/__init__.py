"""Distillation: trains one student with a teacher, outputs cached for a bank of views."""
