"""Lower precision whose cost is known: INT8 and FP16 files, and the gate that measures them in boxes."""
