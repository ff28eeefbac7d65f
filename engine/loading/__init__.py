"""From a source to clean batches, prefetched within a memory budget."""
