// The kernels as a Python module that is the same for every version of Python and of PyTorch: it is given addresses.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030a0000
#include <Python.h>

#if defined(CTLOSS_AVX2) || defined(CTLOSS_AVX512)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>

#include "problem.h"
#include "threads.h"

namespace ctloss {

#define CTLOSS_DECLARE(isa)                           \
    namespace isa {                                   \
    Status solve_contrast(const Problem& problem);    \
    int64_t size_of_contrast(const Problem& problem); \
    Status solve_classes(const Classes& problem);     \
    Status solve_sigmoid(const Sigmoid& problem);     \
    }
CTLOSS_DECLARE(portable)
#ifdef CTLOSS_AVX2
CTLOSS_DECLARE(avx2)
#endif
#ifdef CTLOSS_AVX512
CTLOSS_DECLARE(avx512)
#endif
#ifdef CTLOSS_AVX512BF16
CTLOSS_DECLARE(avx512bf16)
#endif

namespace {

struct Kernels {
    const char* name;
    Status (*contrast)(const Problem&);
    int64_t (*size_of_contrast)(const Problem&);
    Status (*classes)(const Classes&);
    Status (*sigmoid)(const Sigmoid&);
};
#define CTLOSS_KERNELS(isa) \
    (Kernels{#isa, isa::solve_contrast, isa::size_of_contrast, isa::solve_classes, isa::solve_sigmoid})

#if defined(CTLOSS_AVX2) || defined(CTLOSS_AVX512)
// What both sets are compiled for; setup.py names the same features. Clang before 19 does not know f16c by name.
bool has_avx2() {
    unsigned a, b, c = 0, d;
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

// The widest vectors that both the processor and ATEN_CPU_CAPABILITY, which PyTorch's own kernels follow, allow.
Kernels choose() {
    const char* given = std::getenv("ATEN_CPU_CAPABILITY");
    const auto is = [given](const char* name) { return given != nullptr && std::strcmp(given, name) == 0; };
    [[maybe_unused]] const int most = is("default") ? 0 : is("avx2") ? 1 : is("avx512") ? 2 : 3;
#if defined(CTLOSS_AVX2) || defined(CTLOSS_AVX512)
    __builtin_cpu_init();
#endif
#ifdef CTLOSS_AVX512
    if (most >= 2 && has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
#ifdef CTLOSS_AVX512BF16
        if (most >= 3 && __builtin_cpu_supports("avx512bf16")) return CTLOSS_KERNELS(avx512bf16);
#endif
        return CTLOSS_KERNELS(avx512);
    }
#endif
#ifdef CTLOSS_AVX2
    if (most >= 1 && has_avx2()) return CTLOSS_KERNELS(avx2);
#endif
    return CTLOSS_KERNELS(portable);
}

const Kernels kernels = choose();

// Reads a call's arguments one after the other.
class Arguments {
  public:
    Arguments(PyObject* const* all, Py_ssize_t count) : next_(all), end_(all + count) {}

    int64_t integer() { return next_ < end_ ? PyLong_AsLongLong(*next_++) : missing(); }
    double number() { return next_ < end_ ? PyFloat_AsDouble(*next_++) : missing(); }
    template <class Entry>
    Entry* address() {
        return reinterpret_cast<Entry*>(
            static_cast<uintptr_t>(next_ < end_ ? PyLong_AsUnsignedLongLong(*next_++) : missing()));
    }
    Py_ssize_t left() const { return end_ - next_; }

  private:
    int missing() {
        PyErr_SetString(PyExc_TypeError, "too few arguments");
        return 0;
    }
    PyObject* const* next_;
    PyObject* const* end_;
};

constexpr int SIDE_ARGUMENTS = 6;

// Reads what is left, the sides, and does the call: 0, 1 if rows were rescaled, or a negative status.
PyObject* solve_sides(Arguments& given, Problem& problem) {
    const Py_ssize_t num_sides = given.left() / SIDE_ARGUMENTS, least = problem.own_sides + 2;
    if (num_sides < least || given.left() % SIDE_ARGUMENTS != 0) {
        PyErr_Format(PyExc_TypeError, "six arguments are expected for each of at least %zd sides", least);
        return nullptr;
    }
    Side few[8];
    Side* sides = num_sides <= 8 ? few : static_cast<Side*>(std::malloc(sizeof(Side) * num_sides));
    if (sides == nullptr) return PyErr_NoMemory();
    for (Py_ssize_t side = 0; side < num_sides; ++side) {
        sides[side].rows = given.address<const void>();
        sides[side].count = given.integer();
        sides[side].stride = given.integer();
        sides[side].dtype = static_cast<Dtype>(given.integer());
        sides[side].ids = given.address<const int64_t>();
        sides[side].gradient = given.address<float>();
        if (sides[side].gradient != nullptr) problem.gradient = true;
    }
    problem.sides = sides;
    problem.num_sides = static_cast<int>(num_sides);
    if (problem.own_sides > 0) {
        problem.n = sides[0].count;
        problem.others = sides[problem.own_sides].count;
        const bool pairs = sides[1].count == problem.n && sides[problem.own_sides + 1].count == problem.others;
        if (PyErr_Occurred() == nullptr && !(pairs && problem.n > 0 && problem.others > 0))
            PyErr_SetString(PyExc_ValueError, "both ranks have as many rows of y as of x, and at least one");
        if (PyErr_Occurred() == nullptr && problem.gradient && problem.lse == nullptr)
            PyErr_SetString(PyExc_ValueError, "a gradient needs a and lse");
        // The rows whose gradient is wanted may be none.
        problem.gradient = problem.lse != nullptr;
    }
    bool rescaled = false;
    problem.rescaled = &rescaled;
    Status status = DONE;
    if (PyErr_Occurred() == nullptr) {
        Py_BEGIN_ALLOW_THREADS status = kernels.contrast(problem);
        release_scratch();
        Py_END_ALLOW_THREADS
    }
    if (sides != few) std::free(sides);
    if (PyErr_Occurred() != nullptr) return nullptr;
    return PyLong_FromLong(status == DONE ? rescaled : -static_cast<long>(status));
}

void read_memory(Arguments& given, Problem& problem) {
    problem.entries = given.address<float>();
    problem.formed = problem.entries != nullptr && problem.lse != nullptr;
    problem.workspace = given.integer();
    problem.threads = static_cast<int>(given.integer());
}

PyObject* contrast(PyObject*, PyObject* const* all, Py_ssize_t count) {
    Arguments given(all, count);
    Problem problem{};
    problem.n = given.integer();
    problem.d = given.integer();
    problem.negatives = static_cast<Negatives>(given.integer());
    problem.num_directions = static_cast<int>(given.integer());
    problem.normalize = given.integer() != 0;
    problem.precise = static_cast<int>(given.integer());
    problem.masked = given.integer() != 0;
    problem.bounded = given.integer() != 0;
    problem.margin = given.number();
    problem.scale = given.number();
    problem.scales = given.address<double>();
    problem.loss = static_cast<Loss>(given.integer());
    problem.a = given.address<double>();
    problem.b = given.address<double>();
    problem.shares = given.address<double>();
    problem.share = given.number();
    problem.held = given.number();
    problem.z = given.address<double>();
    problem.positive = given.address<double>();
    problem.moment = given.address<double>();
    problem.loss_value = given.address<float>();
    problem.exponents = given.address<float>();
    problem.lse = given.address<double>();
    read_memory(given, problem);
    return PyErr_Occurred() != nullptr ? nullptr : solve_sides(given, problem);
}

PyObject* block(PyObject*, PyObject* const* all, Py_ssize_t count) {
    Arguments given(all, count);
    Problem problem{};
    problem.own_sides = static_cast<int>(given.integer());
    problem.d = given.integer();
    problem.negatives = static_cast<Negatives>(given.integer());
    problem.num_directions = static_cast<int>(given.integer());
    problem.mutual = given.integer() != 0;
    problem.normalize = given.integer() != 0;
    problem.precise = static_cast<int>(given.integer());
    problem.masked = given.integer() != 0;
    problem.bounded = given.integer() != 0;
    problem.margin = given.number();
    problem.scale = given.number();
    problem.scales = given.address<double>();
    problem.a = given.address<double>();
    problem.lse = given.address<double>();
    problem.held = 1;
    problem.z = given.address<double>();
    problem.moment = given.address<double>();
    problem.exponents = given.address<float>();
    read_memory(given, problem);
    if (PyErr_Occurred() != nullptr) return nullptr;
    if (problem.own_sides < 2 || (problem.a == nullptr) != (problem.lse == nullptr)) {
        PyErr_SetString(PyExc_ValueError, "at least two sides are the first rank's, and a and lse go together");
        return nullptr;
    }
    return solve_sides(given, problem);
}

PyObject* size(PyObject*, PyObject* const* all, Py_ssize_t count) {
    Arguments given(all, count);
    Side sides[6] = {};
    Problem problem{};
    problem.n = sides[0].count = sides[1].count = given.integer();
    sides[2].count = given.integer();
    problem.negatives = static_cast<Negatives>(given.integer());
    problem.num_directions = static_cast<int>(given.integer());
    problem.bounded = given.integer() == 0;
    problem.others = sides[3].count = sides[4].count = given.integer();
    sides[5].count = given.integer();
    problem.d = 1;
    problem.sides = sides;
    problem.own_sides = problem.num_sides = 3;
    if (problem.others > 0) problem.mutual = true, problem.num_sides = 6;
    if (PyErr_Occurred() != nullptr) return nullptr;
    return PyLong_FromLongLong(kernels.size_of_contrast(problem));
}

Side read_side(Arguments& given, int64_t count) {
    Side side{};
    side.count = count;
    side.rows = given.address<const void>();
    side.stride = given.integer();
    side.dtype = static_cast<Dtype>(given.integer());
    side.gradient = given.address<float>();
    return side;
}

PyObject* classes(PyObject*, PyObject* const* all, Py_ssize_t count) {
    Arguments given(all, count);
    Classes problem{};
    problem.n = given.integer();
    problem.d = given.integer();
    problem.normalize = given.integer() != 0;
    problem.precise = given.integer() != 0;
    problem.scale = given.number();
    problem.weights = given.address<const double>();
    problem.mean = given.integer() != 0;
    problem.losses = given.address<double>();
    problem.total = given.address<float>();
    problem.slope = given.address<double>();
    problem.exponents = given.address<float>();
    problem.threads = static_cast<int>(given.integer());
    problem.x = read_side(given, problem.n);
    problem.x.ids = given.address<const int64_t>();
    if (PyErr_Occurred() != nullptr) return nullptr;
    bool rescaled = false;
    int64_t paired = 0;
    problem.rescaled = &rescaled;
    problem.paired = &paired;
    Status status = DONE;
    Py_BEGIN_ALLOW_THREADS status = kernels.classes(problem);
    release_scratch();
    Py_END_ALLOW_THREADS return PyLong_FromLongLong(status == DONE ? 2 * paired + rescaled
                                                                   : -static_cast<long long>(status));
}

PyObject* sigmoid(PyObject*, PyObject* const* all, Py_ssize_t count) {
    Arguments given(all, count);
    Sigmoid problem{};
    problem.paired = given.integer() != 0;
    problem.n = given.integer();
    problem.m = given.integer();
    problem.d = given.integer();
    problem.normalize = given.integer() != 0;
    problem.precise = given.integer() != 0;
    problem.inverse = given.number();
    problem.bias = given.number();
    problem.weights = given.address<const double>();
    problem.losses = given.address<double>();
    problem.total = given.address<float>();
    problem.share = given.number();
    problem.slope = given.address<double>();
    problem.offset = given.address<double>();
    problem.exponents = given.address<float>();
    problem.threads = static_cast<int>(given.integer());
    problem.x = read_side(given, problem.n);
    problem.y = read_side(given, problem.m);
    problem.x.ids = given.address<const int64_t>();
    problem.y.ids = given.address<const int64_t>();
    if (PyErr_Occurred() != nullptr) return nullptr;
    if ((problem.paired && problem.n != problem.m) || (problem.x.ids == nullptr) != (problem.y.ids == nullptr)) {
        PyErr_SetString(PyExc_ValueError, "pairs are as many rows of x as of y, and both sides have ids or neither");
        return nullptr;
    }
    bool rescaled = false;
    problem.rescaled = &rescaled;
    Status status = DONE;
    Py_BEGIN_ALLOW_THREADS status = kernels.sigmoid(problem);
    release_scratch();
    Py_END_ALLOW_THREADS return PyLong_FromLong(status == DONE ? rescaled : -static_cast<long>(status));
}

// Small gradients are multiplied by a number at less than what a call of PyTorch costs.
PyObject* scale(PyObject*, PyObject* const* all, Py_ssize_t count) {
    Arguments given(all, count);
    const float factor = static_cast<float>(given.number());
    while (given.left() >= 2 && PyErr_Occurred() == nullptr) {
        float* values = given.address<float>();
        const int64_t size = given.integer();
        for (int64_t i = 0; i < size; ++i) values[i] *= factor;
    }
    if (PyErr_Occurred() != nullptr) return nullptr;
    Py_RETURN_NONE;
}

PyObject* capability(PyObject*, PyObject*) { return PyUnicode_FromString(kernels.name); }

PyMethodDef methods[] = {
    {"contrast", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(contrast)), METH_FASTCALL,
     "Sums, loss and gradient of one call, as ctloss.kernels.native.engine calls it: 0, 1 if rows were rescaled, or a "
     "negative status."},
    {"block", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(block)), METH_FASTCALL,
     "Sums, or gradient, of two ranks' rows against each other, as ctloss.kernels.blocks.native calls it; returns what "
     "contrast does."},
    {"size", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(size)), METH_FASTCALL,
     "Bytes of all exponentials of a call, from its pairs, candidates, negatives, directions and whether a logit "
     "serves both ways; and of a block with another rank's pairs and candidates, 0 of each if there is none."},
    {"classes", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(classes)), METH_FASTCALL,
     "Losses and gradient of one call of the supervised loss, as ctloss.kernels.native.sup_con calls it: twice the "
     "rows with a positive, plus 1 if rows were rescaled, or a negative status."},
    {"sigmoid", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(sigmoid)), METH_FASTCALL,
     "Losses and gradient of one call of the sigmoid loss, as ctloss.kernels.native.sig_lip calls it; returns what "
     "contrast does."},
    {"scale", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(scale)), METH_FASTCALL,
     "Multiply numbers in place: the factor, then addresses and counts of single-precision numbers."},
    {"capability", capability, METH_NOARGS, "The instruction set the kernels were chosen for."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace ctloss

PyMODINIT_FUNC PyInit__kernels() { return PyModule_Create(&ctloss::definition); }
