import { setDefaultTimeout } from "bun:test";

// Whole training runs are tests here; the default of 5 s is for unit tests.
setDefaultTimeout(120_000);
