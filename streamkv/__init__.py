"""StreamKV: a compressed, durable KV memory of video, and answers from it. Knows no Ray."""
