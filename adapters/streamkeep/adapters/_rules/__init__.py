"""What vendors' events say, and how front ends are told. Pure: values in, values out, no I/O, no clock."""
