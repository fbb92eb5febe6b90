"""Next-item prediction on sequences without times: our GRM, which generates semantic IDs, beside honest floors and a SASRec."""
