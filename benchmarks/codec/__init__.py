"""Bytes, tokens, error and time of the payload codec; each module with a `main` prints one table.

Rules of this folder:
 - `python -m benchmarks.codec`: bytes against tokens beside JPEG, WebP and H.264 of the same frames.
 - `.towers`: bytes and error at openvla-7b's size. `.speed`: milliseconds. `.hostile`: what damaged bytes cost.
 - `.expand`: what the server pays for the product behind the decoder.
"""
