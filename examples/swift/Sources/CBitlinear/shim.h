/* pkg-config's -I finds it. */
#include <bitlinear.h>
