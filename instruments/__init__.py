"""What the chapters measure with: bytes, registers, time, ceilings, and the plots that show them."""
