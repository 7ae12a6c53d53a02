"""Python clients of the server, blocking and asyncio, over httpx. No torch, no Ray."""
