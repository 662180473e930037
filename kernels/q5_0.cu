#include "entries.cuh"

FOREBAY_TYPE(q5_0, Q5_0)
