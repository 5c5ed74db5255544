from support.browser import chromium, show

__all__ = ["chromium", "show"]
