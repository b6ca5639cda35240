"""The demos: chats in the browser and a program in the terminal, whose answers survive what happens to them."""

__all__: list[str] = []
