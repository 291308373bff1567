// The kernels for any CPU.
#include "kernels.h"

#define CAPABILITY plain
#define VECTOR 4
#define ROWS 6
#include "table.h"
