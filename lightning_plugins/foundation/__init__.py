"""What every callback stands on: the callback base, the recorder of calls, and the injector of terms into a step."""
