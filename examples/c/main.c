#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "words.h"

int main(int argc, char **argv)
{
	size_t n = argc > 1 ? strtoul(argv[1], NULL, 10) : 5;
	struct entry *top = calloc(n + 1, sizeof *top);
	struct table *t = table_new();
	int err;

	if (!top || !t) {
		perror("words");
		return 1;
	}
	err = read_words(stdin, t);
	if (err) {
		fprintf(stderr, "words: %s\n", strerror(err));
		return 1;
	}
	n = table_top(t, top, n);
	print_bars(stdout, top, n, 40);
	printf("%zu different words\n", table_size(t));
	table_free(t);
	free(top);
	return 0;
}
