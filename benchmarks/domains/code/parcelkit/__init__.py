"""parcelkit, the invented courier library that the source code questions are about."""
