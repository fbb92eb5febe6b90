"""What each choice is worth: decoders, semantic IDs and delayed-feedback modes, one at a time, within small fixed budgets."""
