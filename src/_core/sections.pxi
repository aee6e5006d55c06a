"""Compiled, `with self._guard:` is a mutex without the GIL, and nothing at all with it.

With the GIL it needs nothing, because nothing inside a section lets go of the GIL; and a mutex all
the same would make a loan half as long again before Python 3.13. So here is what makes nothing of
Cython's. It has to come after that, for which there is `preliminary_late_includes_cy28` in the
first line of each file that includes this one.

Not `cython.critical_section`, which lets others in as soon as its thread has to wait inside it: a
reference that is dropped to an object of another thread may have to wait.
"""

cdef extern from *:
    """
    #ifndef Py_GIL_DISABLED
    #ifndef __Pyx_Locks_PyMutex_LockGil
    #error "this version of Cython has other names for what it makes of cython.pymutex"
    #endif
    #undef __Pyx_Locks_PyMutex_Init
    #undef __Pyx_Locks_PyMutex_Delete
    #undef __Pyx_Locks_PyMutex_LockGil
    #undef __Pyx_Locks_PyMutex_Unlock
    #define __Pyx_Locks_PyMutex_Init(mutex)
    #define __Pyx_Locks_PyMutex_Delete(mutex)
    #define __Pyx_Locks_PyMutex_LockGil(mutex) ((void)&(mutex))
    #define __Pyx_Locks_PyMutex_Unlock(mutex) ((void)&(mutex))
    #endif
    static CYTHON_INLINE void ybsmart_renew(__Pyx_Locks_PyMutex *mutex)
    {
        memset(mutex, 0, sizeof *mutex);
    }
    """
    void renew "ybsmart_renew"(cython.pymutex *mutex)  # unlocked, whoever has locked it
