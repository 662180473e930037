#include "entries.cuh"

FOREBAY_TYPE(mxfp4, MXFP4)
