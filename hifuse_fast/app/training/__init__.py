"""`hifuse-fast train`: what is asked (configuration), the recipe, the loop, its state, many ranks, and what is written."""
