"""`joblib.wrap_non_picklable_objects`: objects that any pickle takes, as they bring cloudpickle along."""

from __future__ import annotations

from typing import Any


class _Wrapped:
    """An object that is pickled by cloudpickle, and looks like itself."""

    def __init__(self, obj: Any, keep_wrapper: bool) -> None:
        self._obj = obj
        self._keep_wrapper = keep_wrapper

    def __getattr__(self, name: str) -> Any:
        if name in ("_obj", "_keep_wrapper"):  # not there yet
            raise AttributeError(name)
        return getattr(self._obj, name)

    def __reduce__(self) -> Any:
        import cloudpickle

        pickled = cloudpickle.dumps(self._obj)
        return (_unwrap_again, (pickled,)) if self._keep_wrapper else (cloudpickle.loads, (pickled,))


class _WrappedCallable(_Wrapped):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._obj(*args, **kwargs)


def _wrap(obj: Any, keep_wrapper: bool) -> Any:
    return (_WrappedCallable if callable(obj) else _Wrapped)(obj, keep_wrapper)


def _unwrap_again(pickled: bytes) -> Any:
    import cloudpickle

    return _wrap(cloudpickle.loads(pickled), True)


def wrap_non_picklable_objects(obj: Any, keep_wrapper: bool = True) -> Any:
    """An object, a function or a class (whose instances are then wrapped) that can be pickled where `obj` cannot.

    keep_wrapper: what comes out of the pickle is wrapped again, and can be pickled further.
    """
    if not isinstance(obj, type):
        return _wrap(obj, keep_wrapper)

    class Wrapper(_WrappedCallable if "__call__" in vars(obj) else _Wrapped):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(obj(*args, **kwargs), keep_wrapper)

        def __reduce__(self) -> Any:
            import cloudpickle

            pickled = cloudpickle.dumps(self._obj)
            return (_unwrap_again, (pickled,)) if keep_wrapper else (cloudpickle.loads, (pickled,))

    Wrapper.__name__ = obj.__name__
    Wrapper.__doc__ = obj.__doc__
    return Wrapper
