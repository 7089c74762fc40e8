"""Reading the checkpoints of others: ALBEF, RaSa, BERT and ViT state dicts."""
