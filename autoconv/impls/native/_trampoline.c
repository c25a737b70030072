/* From Python into a kernel with as little in between as possible.
 *
 * kernel(address) returns a function f(a, b, out, scratch): a, b, out have the buffer protocol, in
 * any strides (the plan has checked them), scratch is an address. The kernel at `address` is
 *     void run(const void *a, const void *b, void *out, void *scratch)
 * and runs without the GIL. Stable ABI of Python 3.11: one object serves every later version.
 */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include AUTOCONV_PYTHON_H /* Python.h by its full path: several Pythons may share a machine */

typedef void (*run_t)(const void *, const void *, void *, void *);

static PyObject *call(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    Py_buffer view[3];
    int held = 0;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "a kernel takes a, b, out and a scratch address");
        return NULL;
    }
    run_t run = (run_t)PyLong_AsVoidPtr(self);
    void *scratch = PyLong_AsVoidPtr(args[3]);
    if (PyErr_Occurred()) return NULL;
    for (; held < 3; held++)
        if (PyObject_GetBuffer(args[held], &view[held], held == 2 ? PyBUF_STRIDES | PyBUF_WRITABLE : PyBUF_STRIDES))
            goto failed;
    Py_BEGIN_ALLOW_THREADS
    run(view[0].buf, view[1].buf, view[2].buf, scratch);
    Py_END_ALLOW_THREADS
    while (held) PyBuffer_Release(&view[--held]);
    Py_RETURN_NONE;
failed:
    while (held) PyBuffer_Release(&view[--held]);
    return NULL;
}

static PyMethodDef call_def = {"run", (PyCFunction)(void (*)(void))call, METH_FASTCALL, "Run the kernel."};

static PyObject *kernel(PyObject *module, PyObject *address) {
    (void)module;
    if (!PyLong_AsVoidPtr(address)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "a kernel's address is not null");
        return NULL;
    }
    return PyCFunction_NewEx(&call_def, address, NULL);
}

static PyMethodDef methods[] = {
    {"kernel", kernel, METH_O, "A function that calls the kernel at this address."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_autoconv_trampoline", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__autoconv_trampoline(void) { return PyModule_Create(&definition); }
