"""KuaiRand, prequentially: how good recommendations are by how often the model is published, beside floors, from one pass over the log."""
