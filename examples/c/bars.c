#include <stdio.h>

#include "words.h"

void print_bars(FILE *out, const struct entry *e, size_t n, int width)
{
	for (size_t i = 0; i < n; i++) {
		int bar = e[i].count * width / e[0].count;

		fprintf(out, "%-12s %5lu ", e[i].word, e[i].count);
		while (bar-- > 0)
			putc('#', out);
		putc('\n', out);
	}
}
