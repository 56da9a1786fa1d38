/* A backend for Triton that hands its requests to backend.py in an embedded interpreter; PYTHON is its library. */
#include <Python.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void start(void) {
    dlopen(PYTHON, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD); /* extension modules look for its symbols everywhere */
    Py_InitializeEx(0);
    PyEval_SaveThread();
}

void* TRITONBACKEND_ModelInstanceExecute(void* instance, void** requests, uint32_t count) {
    pthread_once(&once, start);
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject* module = PyImport_ImportModule("backend");
    for (uint32_t i = 0; module != NULL && i < count; i++) {
        PyObject* done = PyObject_CallMethod(module, "execute", "KK", (unsigned long long)(uintptr_t)instance,
                                             (unsigned long long)(uintptr_t)requests[i]);
        Py_XDECREF(done);
    }
    if (PyErr_Occurred()) PyErr_Print();
    Py_XDECREF(module);
    PyGILState_Release(state);
    return NULL;
}
