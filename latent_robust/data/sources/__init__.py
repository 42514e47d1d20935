"""Where images and pairs come from: folders, tables, tar shards, the Hub, built-in sets."""
