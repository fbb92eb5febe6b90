"""Online learning: score, then learn, then record; checkpoints, and versions for serving. No Kafka here."""
