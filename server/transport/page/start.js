// When all parts are there.

poll();
