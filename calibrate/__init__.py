"""Lower precision whose cost is known: INT8 and FP16 files, the gate that measures them in boxes, and the search between."""
