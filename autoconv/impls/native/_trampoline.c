/* From Python into a kernel with as little in between as possible.
 *
 * kernel(address) returns a function f(a, b, out, scratch): a, b, out have the buffer protocol, in
 * any strides (the plan has checked them), scratch is an address.
 *
 * checked(address, filters, array_type, dtype, form, ...) returns a function g(a, b, out[, scratch]), or with filters
 * that are not None, g(a, out[, scratch]): it looks at the arguments itself. Each must be of exactly that type and
 * dtype, of the shape and strides of its form, aligned and, for out, writable and apart from the operands. Then it runs
 * the kernel and returns True; else it returns False and has done nothing. A form is (shape, strides in bytes) of an
 * array without gaps, so that its first and last byte follow.
 *
 * The kernel at `address` is
 *     void run(const void *a, const void *b, void *out, void *scratch)
 * and runs without the GIL. Stable ABI of Python 3.11: one object serves every later version.
 */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include AUTOCONV_PYTHON_H /* Python.h by its full path: several Pythons may share a machine */
#include <stdint.h>

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

#define MOST_AXES 8
#define CHECKED "autoconv.checked"

struct form { Py_ssize_t axes, shape[MOST_AXES], strides[MOST_AXES]; };
struct checked {
    run_t run;
    PyObject *array_type, *dtype, *dtype_name;
    Py_buffer filters; /* held for good when bound */
    int bound, arrays;
    struct form form[3];
};

static int fits(const struct checked *self, PyObject *array, const struct form *form, Py_buffer *view, int flags) {
    if ((PyObject *)Py_TYPE(array) != self->array_type) return 0;
    PyObject *dtype = PyObject_GetAttr(array, self->dtype_name);
    int same = dtype == self->dtype;
    Py_XDECREF(dtype);
    if (!same || PyObject_GetBuffer(array, view, flags)) {
        PyErr_Clear(); /* who looks closer says what is wrong */
        return 0;
    }
    same = view->ndim == form->axes && (uintptr_t)view->buf % (uintptr_t)view->itemsize == 0;
    for (int i = 0; same && i < form->axes; i++)
        same = view->shape[i] == form->shape[i] && view->strides[i] == form->strides[i];
    if (!same) PyBuffer_Release(view);
    return same;
}

static int apart(const Py_buffer *a, const Py_buffer *b) {
    uintptr_t first = (uintptr_t)a->buf, second = (uintptr_t)b->buf;
    return first + (uintptr_t)a->len <= second || second + (uintptr_t)b->len <= first;
}

static PyObject *call_checked(PyObject *capsule, PyObject *const *args, Py_ssize_t count) {
    struct checked *self = PyCapsule_GetPointer(capsule, CHECKED);
    if (!self) return NULL;
    if (count != self->arrays && count != self->arrays + 1) {
        PyErr_SetString(PyExc_TypeError, "a kernel takes its operands, out and at most a scratch address");
        return NULL;
    }
    void *scratch = count > self->arrays ? PyLong_AsVoidPtr(args[self->arrays]) : NULL;
    if (!scratch && PyErr_Occurred()) return NULL;
    Py_buffer view[3];
    int held = 0, last = self->arrays - 1, good = 1;
    for (; held <= last; held++)
        if (!fits(self, args[held], &self->form[held], &view[held],
                  held == last ? PyBUF_STRIDES | PyBUF_WRITABLE : PyBUF_STRIDES)) {
            good = 0;
            break;
        }
    for (int i = 0; good && i < last; i++)
        good = apart(&view[i], &view[last]);
    if (good) {
        const void *filters = self->bound ? self->filters.buf : view[1].buf;
        Py_BEGIN_ALLOW_THREADS
        self->run(view[0].buf, filters, view[last].buf, scratch);
        Py_END_ALLOW_THREADS
    }
    while (held) PyBuffer_Release(&view[--held]);
    return PyBool_FromLong(good);
}

static PyMethodDef checked_def = {"run_checked", (PyCFunction)(void (*)(void))call_checked, METH_FASTCALL,
                                  "Run the kernel if the arrays are as they must be."};

static void forget(struct checked *self) {
    if (self->bound) PyBuffer_Release(&self->filters);
    Py_XDECREF(self->array_type);
    Py_XDECREF(self->dtype);
    Py_XDECREF(self->dtype_name);
    PyMem_Free(self);
}

static void forget_capsule(PyObject *capsule) {
    struct checked *self = PyCapsule_GetPointer(capsule, CHECKED);
    if (self) forget(self);
}

static int read_sizes(PyObject *sizes, Py_ssize_t axes, Py_ssize_t *to) {
    for (Py_ssize_t i = 0; i < axes; i++) {
        PyObject *size = PySequence_GetItem(sizes, i);
        to[i] = size ? PyLong_AsSsize_t(size) : -1;
        Py_XDECREF(size);
        if (PyErr_Occurred()) return -1;
    }
    return 0;
}

static PyObject *checked(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count < 6 || count > 7) {
        PyErr_SetString(PyExc_TypeError, "checked takes address, filters, array type, dtype and two or three forms");
        return NULL;
    }
    struct checked *self = PyMem_Calloc(1, sizeof *self);
    if (!self) return PyErr_NoMemory();
    self->run = (run_t)PyLong_AsVoidPtr(args[0]);
    self->arrays = (int)count - 4;
    if (!self->run || (args[1] == Py_None) != (self->arrays == 3)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "three forms, or filters and two, and an address");
        goto failed;
    }
    if (args[1] != Py_None) {
        if (PyObject_GetBuffer(args[1], &self->filters, PyBUF_STRIDES)) goto failed;
        self->bound = 1;
    }
    Py_INCREF(self->array_type = args[2]);
    Py_INCREF(self->dtype = args[3]);
    if (!(self->dtype_name = PyUnicode_InternFromString("dtype"))) goto failed;
    for (int i = 0; i < self->arrays; i++) {
        struct form *form = &self->form[i];
        PyObject *shape = PySequence_GetItem(args[4 + i], 0), *strides = PySequence_GetItem(args[4 + i], 1);
        form->axes = shape ? PySequence_Size(shape) : -1;
        if (form->axes > MOST_AXES) PyErr_SetString(PyExc_ValueError, "too many axes");
        int bad = !strides || form->axes < 0 || form->axes > MOST_AXES || read_sizes(shape, form->axes, form->shape)
                  || read_sizes(strides, form->axes, form->strides);
        Py_XDECREF(shape);
        Py_XDECREF(strides);
        if (bad) goto failed;
    }
    PyObject *capsule = PyCapsule_New(self, CHECKED, forget_capsule);
    if (!capsule) goto failed;
    PyObject *function = PyCFunction_NewEx(&checked_def, capsule, NULL);
    Py_DECREF(capsule);
    return function;
failed:
    forget(self);
    return NULL;
}

static PyMethodDef methods[] = {
    {"kernel", kernel, METH_O, "A function that calls the kernel at this address."},
    {"checked", (PyCFunction)(void (*)(void))checked, METH_FASTCALL,
     "A function that looks at its arrays and calls the kernel at this address."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_autoconv_trampoline", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__autoconv_trampoline(void) { return PyModule_Create(&definition); }
