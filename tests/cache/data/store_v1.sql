BEGIN TRANSACTION;
CREATE TABLE measurement (
	id INTEGER NOT NULL, 
	spec VARCHAR(255) NOT NULL, 
	device VARCHAR(255) NOT NULL, 
	implementation VARCHAR(255) NOT NULL, 
	version INTEGER NOT NULL, 
	choice TEXT NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	environment TEXT NOT NULL, 
	median_s DOUBLE, 
	spread DOUBLE, 
	samples TEXT NOT NULL, 
	workspace_bytes BIGINT NOT NULL, 
	error DOUBLE, 
	deterministic BOOLEAN NOT NULL, 
	strict_nan BOOLEAN NOT NULL, 
	tags TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	race VARCHAR(255) NOT NULL, 
	measured_at DOUBLE NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "measurement" VALUES(1,'fprop n8c64 56x56 k64 3x3 p1 s1 d1 g1 conv nchw f32','cpu AMD EPYC 9R14 (25.17.1) / avx512 / 2 cores / 2 threads','native.winograd',1,'{"config":{"tile":4},"id":"native.winograd","version":1}','ok','{"gcc":"12.2.0","object":"5f2c9a7e41d0b6c3"}',0.00231,0.012,'[0.0023,0.00231,0.00234]',4194304,2.1e-06,1,0,'["native","winograd"]','','race-1',1767225600.5,'build-7');
INSERT INTO "measurement" VALUES(2,'fprop n8c64 56x56 k64 3x3 p1 s1 d1 g1 conv nchw f32','cpu AMD EPYC 9R14 (25.17.1) / avx512 / 2 cores / 2 threads','rewrite.groups',2,'{"child":{"config":{},"id":"numpy.im2col","version":1},"config":{},"id":"rewrite.groups","version":2}','partial','{"numpy":"2.4.6"}',0.0123,0.05,'[0.0123]',9437184,3.0e-07,1,1,'[]','','race-1',1767225600.5,'build-7');
INSERT INTO "measurement" VALUES(3,'fprop n8c64 56x56 k64 3x3 p1 s1 d1 g1 conv nchw f32','cpu AMD EPYC 9R14 (25.17.1) / avx512 / 2 cores / 2 threads','numpy.fft',1,'{"config":{},"id":"numpy.fft","version":1}','failed','{"numpy":"2.4.6"}',NULL,NULL,'[]',0,NULL,1,0,'[]','MemoryError: it''s too large','race-1',1767225600.5,'build-7');
CREATE TABLE miss (
	spec VARCHAR(255) NOT NULL, 
	device VARCHAR(255) NOT NULL, 
	count INTEGER NOT NULL, 
	last_at DOUBLE NOT NULL, 
	reason TEXT NOT NULL, 
	PRIMARY KEY (spec, device)
);
INSERT INTO "miss" VALUES('dgrad n8c64 56x56 k64 3x3 p1 s1 d1 g1 conv nchw f32','cpu AMD EPYC 9R14 (25.17.1) / avx512 / 2 cores / 2 threads',3,1767225601.0,'on_miss is heuristic');
CREATE TABLE schema_version (
	version INTEGER NOT NULL, 
	applied_at DOUBLE NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "schema_version" VALUES(1,1767225600.0);
CREATE INDEX ix_measurement_spec_device ON measurement (spec, device);
COMMIT;
